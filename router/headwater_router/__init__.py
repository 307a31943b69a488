"""The prefix-aware router: one gateway URL in front of many engine endpoints."""
