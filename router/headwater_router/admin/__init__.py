"""The admin port: metrics, readiness, and what an operator of this router can see and do."""
