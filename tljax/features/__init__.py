"""Floor 3: what the frozen part of a tower makes of a data set, computed once, stored, and fed back."""
