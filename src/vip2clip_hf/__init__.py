"""ViP²-CLIP: zero-shot visual anomaly detection as a Hugging Face Transformers model.

Importing the package registers the models with transformers: `AutoConfig`, `AutoModel`, `AutoImageProcessor` and
`pipeline("anomaly-detection")` then support them. The models, torch and all other names are imported on first use.
"""

from typing import TYPE_CHECKING

from ._version import __version__
from .utils.lazy import lazy_names
from .utils.lazy_registration import register_on_use


if not TYPE_CHECKING:  # with __getattr__, type checkers would accept any name
    __getattr__, __dir__, __all__ = lazy_names(__name__)
    __all__ += ["__version__"]

if TYPE_CHECKING:
    from .app import build_app as build_app, launch as launch
    from .calibration import (
        Calibration as Calibration,
        Detection as Detection,
        calibrate as calibrate,
        calibrate_labelled as calibrate_labelled,
        estimate_detection as estimate_detection,
        save_calibration as save_calibration,
    )
    from .checkpoints import (
        bundled_checkpoint as bundled_checkpoint,
        example_photos as example_photos,
    )
    from .data import (
        BENCHMARKS as BENCHMARKS,
        DataSource as DataSource,
        ViP2ClipCollator as ViP2ClipCollator,
        check_data as check_data,
        index_benchmark as index_benchmark,
        index_folder as index_folder,
        load_benchmark as load_benchmark,
        load_folder as load_folder,
    )
    from .data.synthetic import generate_image as generate_image, write_dataset as write_dataset
    from .evaluation import (
        EVALUATE_MODULE as EVALUATE_MODULE,
        AnomalyMetrics as AnomalyMetrics,
        Detector as Detector,
        ReferenceChoice as ReferenceChoice,
        TrainableDetector as TrainableDetector,
        evaluate_checkpoint as evaluate_checkpoint,
        evaluate_detector as evaluate_detector,
        evaluate_model as evaluate_model,
        evaluate_sets as evaluate_sets,
    )
    from .export import export_onnx as export_onnx, export_torch as export_torch
    from .hub import (
        EndpointHandler as EndpointHandler,
        push_checkpoint as push_checkpoint,
        save_checkpoint as save_checkpoint,
        write_endpoint as write_endpoint,
    )
    from .inference import (
        ViP2ClipDetector as ViP2ClipDetector,
        predict_checkpoint as predict_checkpoint,
        predict_to_folder as predict_to_folder,
    )
    from .models.vip2clip import (
        AnomalyDetectionPipeline as AnomalyDetectionPipeline,
        AnomalyDetectionResult as AnomalyDetectionResult,
        AnomalyRegion as AnomalyRegion,
        CallOptions as CallOptions,
        DecisionConfig as DecisionConfig,
        LeftOutPhoto as LeftOutPhoto,
        MaskOptions as MaskOptions,
        ModelOptions as ModelOptions,
        Provenance as Provenance,
        ReferenceBank as ReferenceBank,
        ReferenceOptions as ReferenceOptions,
        ReferencePhoto as ReferencePhoto,
        ViP2ClipAlignmentOutput as ViP2ClipAlignmentOutput,
        ViP2ClipAnomalyDetectionOutput as ViP2ClipAnomalyDetectionOutput,
        ViP2ClipConfig as ViP2ClipConfig,
        ViP2ClipForAnomalyDetection as ViP2ClipForAnomalyDetection,
        ViP2ClipImageFeatures as ViP2ClipImageFeatures,
        ViP2ClipImageProcessor as ViP2ClipImageProcessor,
        ViP2ClipPreTrainedModel as ViP2ClipPreTrainedModel,
        ViP2ClipPromptFeatures as ViP2ClipPromptFeatures,
        convert_release_checkpoint as convert_release_checkpoint,
        decode_result as decode_result,
        draw_heatmap as draw_heatmap,
        load_image as load_image,
        load_mask as load_mask,
    )
    from .plotting import (
        attention_figure as attention_figure,
        attention_maps as attention_maps,
        layer_anomaly_maps as layer_anomaly_maps,
        layers_figure as layers_figure,
        result_figure as result_figure,
        results_figure as results_figure,
        save_figure as save_figure,
    )
    from .references import Adaptation as Adaptation, adapt as adapt
    from .training import (
        FeatureCache as FeatureCache,
        ViP2ClipTrainer as ViP2ClipTrainer,
        ViP2ClipTrainingArguments as ViP2ClipTrainingArguments,
    )
    from .watching import watch_folder as watch_folder


# Importing one of these modules registers its model types.
_OWN, _BASELINES = f"{__name__}.models.registration", f"{__name__}.baselines.registration"
_MODEL_TYPES = {"vip2clip": _OWN}
_MODEL_TYPES.update(
    dict.fromkeys(("clip_anomaly_detection", "adaclip", "winclip", "april_gan", "anomalyclip"), _BASELINES)
)
register_on_use(_MODEL_TYPES, _OWN, {"anomaly-detection": _OWN})
