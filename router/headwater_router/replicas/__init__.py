"""What the replicas of the router share: which prompts which engine has answered, and what they have at each now."""
