"""What a model or a set of runs is worth: numbers and intervals. Nothing is drawn here."""
