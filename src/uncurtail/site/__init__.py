"""What a provisioner starts: one process group per site and session."""
