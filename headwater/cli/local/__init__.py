"""What `headwater up` does: plans processes from ModelDeployments, and keeps them running on this machine."""
