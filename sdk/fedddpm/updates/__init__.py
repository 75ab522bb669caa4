"""An institution's update of a round: trained, stored, made up for, turned into ring words; and the result adopted."""
