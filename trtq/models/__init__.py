"""Where a model comes from: timm, torchvision, a builtin, or the user's own factory; and its checkpoint."""
