"""The choice between cv_bridge and our own converter."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from test_messages import PLAIN, Compressed, Image, encoded, message

from openvla_ros.errors import ImageError
from openvla_ros.messages import image_to_rgb
from openvla_ros.ros.decoding import choose_decoder


def test_without_cv_bridge_our_converter_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    decode, why = choose_decoder("raw")
    assert decode is image_to_rgb
    assert "cv_bridge" in why


def test_a_cv_bridge_that_breaks_while_it_is_imported_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built for NumPy 1, it raises AttributeError under NumPy 2."""
    monkeypatch.setitem(sys.modules, "cv_bridge", ModuleType("cv_bridge"))
    decode, why = choose_decoder("raw")
    assert decode is image_to_rgb
    assert "CvBridge" in why


def with_bridge(monkeypatch: pytest.MonkeyPatch, convert) -> None:
    module = ModuleType("cv_bridge")
    module.CvBridge = lambda: type("Bridge", (), {"imgmsg_to_cv2": staticmethod(convert)})()
    monkeypatch.setitem(sys.modules, "cv_bridge", module)


def test_cv_bridge_is_asked_for_rgb8(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def convert(image: Image, encoding: str) -> np.ndarray:
        asked.append(encoding)
        return np.full((6, 8, 3), 7, np.uint8)

    with_bridge(monkeypatch, convert)
    decode, _ = choose_decoder("raw")
    rgb = decode(PLAIN[0][1])
    assert asked == ["rgb8"]
    assert (rgb == 7).all()


def test_errors_of_cv_bridge_become_image_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(image: Image, encoding: str) -> np.ndarray:
        raise TypeError("buffer is too small for requested array")

    with_bridge(monkeypatch, convert)
    decode, _ = choose_decoder("raw")
    with pytest.raises(ImageError, match="too small"):
        decode(PLAIN[0][1])


def test_a_damaged_image_never_reaches_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(image: Image, encoding: str) -> np.ndarray:
        raise AssertionError("cv_bridge was given a damaged image")

    with_bridge(monkeypatch, convert)
    decode, _ = choose_decoder("raw")
    image = message("rgb8", np.zeros((4, 4, 3), np.uint8))
    image.data = image.data[:-1]
    with pytest.raises(ImageError, match="cut short"):
        decode(image)


def test_real_cv_bridge_gives_the_same_pixels() -> None:
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge comes with an apt ROS")
    assert cv_bridge.CvBridge
    decode, why = choose_decoder("raw")
    assert why.startswith("cv_bridge")
    for name, image, expected in PLAIN:
        np.testing.assert_array_equal(decode(image), expected, err_msg=name)


def test_compressed_images_are_decoded_by_content() -> None:
    decode, _ = choose_decoder("compressed")
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(decode(Compressed(encoded(".png", rgb[..., ::-1]))), rgb)
