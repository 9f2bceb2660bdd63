"""Mistakes that type checkers report, each in the line with the comment. See test_types_for_users.py."""

from vip2clip_hf import AnomalyDetectionPipeline, AnomalyDetectionResult, CallOptions, decode_result


detector = AnomalyDetectionPipeline.from_pretrained("checkpoint")
AnomalyDetectionPipeline.from_pretrained("checkpoint", tresholds=0.5)  # mistake
AnomalyDetectionPipeline.from_pretrained("checkpoint", threshold="high")  # mistake
result = detector("photo.jpg")
results = detector(["photo.jpg"])
stream = detector(name for name in ["photo.jpg"])
detector("photo.jpg", heatmaps=True)  # mistake
detector("photo.jpg", tile_size="large")  # mistake
detector("photo.jpg", channel_order="rbg")  # mistake
detector(3)  # mistake
number: int = result["label"]  # mistake
text: str = result["score"]  # mistake
result["p_value"] + 1  # mistake
result["regions"][0]["width"]  # mistake
results["score"]  # mistake
stream[0]  # mistake
options: CallOptions = {"top_k": "all"}  # mistake
result.to_json(mask="polygon")  # mistake
result.to_dictionary()  # mistake
decode_result("{}")  # mistake
one: AnomalyDetectionResult = detector(("a.jpg", "b.jpg"))  # mistake
