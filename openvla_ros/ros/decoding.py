"""Chooses what turns a camera message into RGB: cv_bridge where it works, else our own converter.

Both give the same pixels; test_messages.py holds the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from openvla_ros.errors import ImageError
from openvla_ros.messages import compressed_to_rgb, image_to_rgb, require_plausible

Decoder = Callable[[Any], np.ndarray]

# Newer names of yuv422 and yuv422_yuy2 that cv_bridge does not know everywhere.
_NOT_IN_CV_BRIDGE = ("uyvy", "yuyv")


def choose_decoder(image_transport: str) -> tuple[Decoder, str]:
    """Return the function from message to (H, W, 3) uint8 RGB, and why it was chosen.

    Args:
        image_transport: "raw" or "compressed".
    """
    if image_transport == "compressed":
        # cv_bridge would call the same OpenCV decoder, and fail for greyscale JPEG.
        return compressed_to_rgb, "OpenCV: compressed images"
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
    except Exception as error:  # also AttributeError: a cv_bridge built for another NumPy or OpenCV
        return image_to_rgb, f"OpenCV/NumPy: cv_bridge cannot be used ({error!r})"

    def decode(message: Any) -> np.ndarray:
        require_plausible(message)
        if message.encoding in _NOT_IN_CV_BRIDGE:
            return image_to_rgb(message)
        try:
            return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))
        except Exception as error:  # cv_bridge raises its own, NumPy's and OpenCV's errors
            raise ImageError(f"cv_bridge cannot convert '{message.encoding}': {error}") from error

    return decode, "cv_bridge: installed"
