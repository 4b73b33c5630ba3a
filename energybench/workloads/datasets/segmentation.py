"""Data sets of segmentation by their names: CamVid as SegNet has it, and ADE20K.

Another folder of images with masks is read by `mask_folder`, which says how it may be laid out.
"""

from __future__ import annotations

from energybench.workloads.datasets.data_facts import Content
from energybench.workloads.datasets.mask_folders import mask_folder

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
CAMVID_VOID = 11
ADE20K_CLASSES = 150


def camvid(folder: str = "camvid", size: int | list[int] | None = None) -> Content:
    """CamVid's street scenes with SegNet's 11 classes (Badrinarayanan et al. 2017); label 11 is void.

    folder: with train/ beside trainannot/ and test/ beside testannot/
    size:   side in pixels, or [height, width], to which images and masks are fitted; else that of the first image

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return mask_folder(folder, size=size, void=CAMVID_VOID, class_names=list(CAMVID))


def ade20k(folder: str = "ade20k", size: int | list[int] | None = 512) -> Content:
    """ADE20K with the 150 classes of the scene parsing challenge (Zhou et al. 2017); label 0 of its files is void.

    folder: with images/training/, images/validation/ and the same below annotations/
    size:   side in pixels, or [height, width], to which images and masks are fitted

    Raises UsageError E402 for what is not there or cannot be read.
    """
    return mask_folder(folder, size=size, number_of_classes=ADE20K_CLASSES, zero_is_void=True)
