"""What an institution learned in a round: trained, stored, made up for, and turned into ring words."""
