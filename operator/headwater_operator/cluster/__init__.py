"""What the API server is asked and told: objects, Events, the Lease."""
