"""What a run would do, in virtual time: policies side by side, and the best that can be done."""
