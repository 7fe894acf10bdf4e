"""How the detector's setup was chosen: measured while it was developed, not by the run that shows it."""

CHOICE = ""
