"""What the replicas of the router share through Redis: which prompts which engine has answered."""
