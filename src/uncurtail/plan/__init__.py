"""What a run would do, in virtual time: policies side by side, and how far from the best possible."""
