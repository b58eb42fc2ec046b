"""Models from timm, torchvision, a builtin or the user's own factory, and their checkpoints."""
