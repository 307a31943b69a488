"""The OpenAI HTTP front of the engine: text in and out; tokens are the engine process's business."""
