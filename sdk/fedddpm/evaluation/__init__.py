"""How good the images are: Frechet distances, KID, precision and recall, with the floor that real images reach."""
