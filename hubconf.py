"""The networks of this repository by torch.hub, without installing it: PyTorch and safetensors are enough.

    torch.hub.load('YOUR_ACCOUNT/cifar_resnet', 'resnet18', pretrained=True, weights='shapes10', trust_repo=True)

(Without trust_repo=True PyTorch asks whether it may run this file. `transform` also takes Pillow and NumPy.)
"""
dependencies = ['torch', 'safetensors']

from cifar_resnet.model import resnet18 as _resnet18


def resnet18(pretrained=False, weights=None, norm=None, strides=None, width=None, num_classes=None):
    """ResNet-18 that normalises with LayerNorm only: (B,3,32,32) normalised -> (B,num_classes) logits.

    pretrained   True: trained weights, eval mode, and the attributes `classes`, `mean`, `std` and `transform`:
                 model(model.transform(picture)[None]) for a picture of Pillow (which takes NumPy and Pillow).
    weights      which of the files in cifar_resnet/weights; None: 'cifar10', the network of the full run on
                 CIFAR-10, WHICH DOES NOT COME WITH THIS VERSION YET. What comes are small networks (width 8) for
                 Shapes-10, a data set of drawn shapes: 'shapes10' and its variants. Another name gets their list.
    norm         layer (default), batch, group8, group32, instance, pixel or none
    strides      of the four stages; default (1,2,2,2): (1,1,2,2) ends on an 8×8 map
    width        channels of the first stage; default 64
    num_classes  default 10

    With pretrained=True the file decides; an argument that contradicts it raises ValueError.
    """
    return _resnet18(norm, strides, width, num_classes, pretrained, weights)
