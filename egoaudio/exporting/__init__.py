"""A checkpoint -> an ONNX graph from sound to probabilities, its weights and a model card, for use without egoaudio."""
