"""What can be set: every option of a build and of training, once."""
