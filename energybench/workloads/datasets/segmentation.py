"""Data sets of segmentation by their names: CamVid as SegNet has it, and ADE20K.

Another folder of images with masks is read by `mask_folder`, which says how it may be laid out.
"""

from __future__ import annotations

from energybench.common import data_folder
from energybench.workloads.datasets.mask_folders import mask_folder
from energybench.workloads.data_facts import Content

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
CAMVID_VOID = 11
ADE20K_CLASSES = 150


def camvid(size: int | list[int] | None = None) -> Content:
    """CamVid's street scenes with SegNet's 11 classes (Badrinarayanan et al. 2017), label 11 being void.

    $ENERGYBENCH_DATA/camvid has train/ beside trainannot/ and test/ beside testannot/. `size` is the side in pixels, or
    [height, width], that images and masks are fitted to.
    """
    folder = data_folder.needed("camvid", "train/ beside trainannot/, test/ beside testannot/")
    return mask_folder(str(folder), size=size, void=CAMVID_VOID, class_names=list(CAMVID))


def ade20k(size: int | list[int] | None = 512) -> Content:
    """ADE20K's 150 classes of the scene parsing challenge (Zhou et al. 2017), label 0 of its files being void.

    $ENERGYBENCH_DATA/ade20k has images/training, images/validation and the same below annotations/. `size` is the side
    in pixels, or [height, width], that images and masks are fitted to.
    """
    folder = data_folder.needed("ade20k", "images/{training,validation} and annotations/{training,validation}")
    return mask_folder(str(folder), size=size, number_of_classes=ADE20K_CLASSES, zero_is_void=True)
