"""Run the common image processor tests of transformers."""

import unittest

import pytest

from helpers.upstream import import_upstream
from vip2clip_hf import ViP2ClipImageProcessor


pytestmark = pytest.mark.slow

common = import_upstream("test_image_processing_common")


class ViP2ClipImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 20, "width": 20})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": ViP2ClipImageProcessor}


class ViP2ClipImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ViP2ClipImageProcessingTester

    def setUp(self):
        super().setUp()
        self.image_processor_tester = ViP2ClipImageProcessingTester(self)

    @unittest.skip("The image processor uses Pillow and NumPy only. This project does not use torchvision.")
    def test_new_models_require_torchvision_backend(self):
        pass
