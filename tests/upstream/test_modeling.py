"""Run the common model and configuration tests of transformers on both variants of the model."""

import unittest

import pytest
import torch
from transformers.testing_utils import torch_device

from helpers.tiny import tiny_clip_config, tiny_config
from helpers.upstream import import_upstream
from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection


pytestmark = pytest.mark.slow

common = import_upstream("test_modeling_common")
configuration = import_upstream("test_configuration_common")


class ViP2ClipModelTester:
    """Builds the configuration and the inputs of the tests: two blocks per tower, all of the vision tower's used."""

    def __init__(self, parent: unittest.TestCase, variant: str) -> None:
        self.parent, self.variant = parent, variant
        self.batch_size, self.image_size, self.is_training = 3, 48, True
        config = self.get_config()
        self.num_hidden_layers = config.clip_vision_config.num_hidden_layers
        self.num_attention_heads = config.clip_vision_config.num_attention_heads
        self.hidden_size = config.clip_vision_config.hidden_size
        self.seq_length = config.patch_grid**2 + 1  # patches and class token

    def get_config(self, **overrides) -> ViP2ClipConfig:
        clip = tiny_clip_config().to_dict()
        clip["vision_config"]["num_hidden_layers"] = 2
        config = tiny_config(self.variant, feature_layers=(1, 2), clip_config=clip, **overrides)
        # Read by the test of `get_image_features`, which does not know nested configurations of this name.
        config.hidden_size = config.clip_vision_config.hidden_size
        return config

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=torch_device)
        return self.get_config(), {"pixel_values": pixel_values}


class UpstreamTests(common.ModelTesterMixin):
    variant = ""
    all_model_classes = (ViP2ClipForAnomalyDetection,)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # the file has no year

    def setUp(self):
        self.model_tester = ViP2ClipModelTester(self, self.variant)
        self.config_tester = configuration.ConfigTester(self, config_class=ViP2ClipConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        inputs.pop("input_ids", None)  # see test_resize_tokens_embeddings
        if return_labels:
            size = self.model_tester.image_size
            inputs["labels"] = torch.tensor([0, 1, 1], device=torch_device)
            inputs["mask_labels"] = torch.zeros(3, size, size, dtype=torch.uint8, device=torch_device)
            inputs["mask_labels"][1:, 8:20, 8:20] = 1
        return inputs

    def test_resize_tokens_embeddings(self):
        # The test also changes token ids in the inputs. This model has none: its prompts are part of it.
        prepare = self.model_tester.prepare_config_and_inputs_for_common
        # The test also removes the last tokens of the vocabulary.
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "normal_token_ids": (3,), "anomalous_token_ids": (4, 5)}

        def with_input_ids():
            _, inputs = prepare()
            config = self.model_tester.get_config(normal_word=None, anomalous_word=None, **tokens)
            return config, {**inputs, "input_ids": torch.ones(3, 7, dtype=torch.long)}

        self.model_tester.prepare_config_and_inputs_for_common = with_input_ids
        super().test_resize_tokens_embeddings()

    @unittest.skip("CLIP is frozen, so its hidden states and attentions have no gradient.")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class PaperModelTest(UpstreamTests, unittest.TestCase):
    variant = "paper"


class ReleaseModelTest(UpstreamTests, unittest.TestCase):
    variant = "release"
