"""An adapter on its way into an engine: its files, its names and tensors there, and the proof that it is served."""
