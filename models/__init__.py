"""The networks: AlexNet of 2012 and of 2014, VGG A to E, and what is known of them before a GPU is touched.

    from models.build import build
    model = build("vgg16_bn", num_classes=1000)  # images (N, 3, 224, 224) -> logits (N, 1000)

Importing this package, `models.build` and `models.geometry` does not import torch, so that a wrong name in a config is
told at once. `python -m models.summary vgg16` prints a network layer by layer.
"""
