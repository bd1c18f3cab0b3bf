#!/bin/sh
# The rows that scripts and checks look for: capture, invoke, upload and e2e name them, with figures in them. No time is judged.
bench="$1"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run() { # bench, further arguments
  name="$1"
  shift
  "$bench" "$name" --quick --json "$folder/$name.json" "$@" > "$folder/table" && return
  echo "FAIL: genie-bench $name $*"
  cat "$folder/table"
  exit 1
}
run capture
run invoke
run upload --filter _session
mv "$folder/upload.json" "$folder/upload_session.json"
run upload --filter bytes=4096
run fetch --filter bytes=65536
run step
run e2e
grep -q 'model=gpt2.*local eager' "$folder/e2e.svg" || { echo "FAIL: no bars beside the JSON of e2e"; exit 1; }
mv "$folder/e2e.json" "$folder/e2e_shm.json"
if [ "$2" = ucx ]; then
  run e2e --transport ucx --filter decode.tokens_per_s
  mv "$folder/e2e.json" "$folder/e2e_ucx.json"
fi
run transfer --transport shm --sizes 64,256K
grep -q '<polyline' "$folder/transfer.svg" || { echo "FAIL: no plot beside the JSON"; exit 1; }
python3 - "$folder" << 'PYTHON'
import json, os, sys

def rows(bench):
    report = json.load(open(f"{sys.argv[1]}/{bench}.json"))
    assert report["bench"] == bench.split("_")[0] and report["commit"] and report["machine"]["cores"] >= 1, report
    for row in report["rows"]:
        for key in "name params unit median p99 runs peer peer_median ratio better target met".split():
            assert key in row, (key, row)
        assert row["median"] > 0 and row["runs"] > 0, row
        assert row["peer"] is None or (row["peer_median"] > 0 and row["ratio"] > 0), row
    return report["rows"]

modes = {"inference", "no_grad", "grad"}
capture = rows("capture")
stream = [r for r in capture if r["name"] == "capture.stream"]
assert {r["params"]["mode"] for r in stream} == modes, stream
targets = {"inference": 0.25, "no_grad": 0.3, "grad": 0.45}
assert all(r["peer"] == "eager" and r["target"] == targets[r["params"]["mode"]] and r["better"] == "lower" for r in stream), stream
ops = {(r["params"]["op"], r["params"]["mode"], r["peer"]): r["target"] for r in capture if r["name"] == "capture.op"}
assert ops == {(op, mode, peer): (300 if op in ("add", "mm", "softmax") and mode == "inference" else None) if peer == "eager"
               else (0.08 if op in ("add", "mm", "add_") else None)
               for op in ("add", "mm", "add_", "view", "softmax") for mode in modes for peer in ("eager", "lazy_ts")}, ops
context = {(r["name"], r["peer"]) for r in capture if r["name"] in ("capture.context_factory", "idle.cpu_op", "idle.start")}
assert context == {("capture.context_factory", "device"), ("capture.context_factory", "eager"),
                   ("idle.cpu_op", "plain torch"), ("idle.start", "plain torch")}, context
assert {r["params"]["transport"] for r in rows("invoke") if r["name"] == "invoke.round_trip"} == {"shm", "embedded"}
assert [(r["name"], r["peer"]) for r in rows("upload")] == [("upload.bandwidth", "memcpy")]
assert [(r["name"], r["peer"], r["target"], r["better"]) for r in rows("upload_session")] == [
    ("upload.first_session", "the slower of memcpy and XXH3-128", 0.9, "higher"),
    ("upload.second_session", "XXH3-128", 1.1, "lower")]
notes = json.load(open(f"{sys.argv[1]}/upload_session.json"))["notes"]
assert any("second_session over shm: 0 bytes were sent, " in note for note in notes), notes
fetch = {(r["params"]["transport"], r["params"]["source"], r["peer"]) for r in rows("fetch")}
assert fetch == {(t, s, p) for t in ("shm", "embedded") for s, p in (("computed", "eager"), ("stored", "memcpy"))}, fetch
transfer = [r for r in rows("transfer") if r["name"].startswith("transfer.")]
assert {(r["name"], r["params"]["op"], r["params"]["bytes"], r["peer"]) for r in transfer} == {
    *(("transfer.latency", op, 64, peer) for op, peer in (("write", None), ("read", None), ("send", "unix socket"))),
    *(("transfer.latency", op, 262144, None) for op in ("write", "read")),
    *(("transfer.message_rate", op, 64, peer) for op, peer in (("write", None), ("read", None), ("send", "unix socket"))),
    *(("transfer.bandwidth", op, 262144, "memcpy") for op in ("write", "read")),
    *(("transfer.cpu_per_byte", op, 262144, None) for op in ("write", "read")),
    ("transfer.post_batch", "write", 64, None)}, transfer
assert all(r["params"]["transport"] == "shm" and r["p999"] >= r["p99"] >= r["median"] for r in transfer), transfer
# A repeated step registers nothing and is a short message: these are counts, not times.
step = json.load(open(f"{sys.argv[1]}/step.json"))["rows"]
assert {(r["name"], r["params"]["program"]) for r in step} == {
    (f"step.{name}", program) for name in ("client_us", "message_bytes", "operators", "templates", "shapes_inferred")
    for program in ("decode_cat", "decode_in_place", "classify", "train")}, step
assert all(r["p99"] == 0 for r in step if r["name"] == "step.templates"), step
assert all(r["p99"] <= 0 for r in step if r["name"] == "step.shapes_inferred"), step
assert all(r["p99"] <= 2048 for r in step if r["name"] == "step.message_bytes"), step
assert sorted((r["name"], r["params"]["model"]) for r in rows("e2e_shm")) == [
    ("decode.tokens_per_s", "char_gpt"), ("decode.tokens_per_s", "gpt2"), ("decode.tokens_per_s", "gpt2"),
    *(("forward.latency", model) for model in ("bert", "dlrm", "dlrm_128", "encoder", "gpt2", "lstm", "moe", "resnet18", "resnet50",
                                               "unet_block", "vit_b16", "vqa")),
    *(("memory.peak", model) for model in ("gpt2_decode", "resnet50")),
    *(("train_step.latency", model) for model in ("cnn", "cnn", "resnet18", "resnet18"))]
assert all(r["params"]["transport"] == "shm" for r in rows("e2e_shm"))
if os.path.exists(f"{sys.argv[1]}/e2e_ucx.json"):
    assert sorted((r["params"]["model"], r["params"]["kv"], r["params"]["transport"], r["peer"]) for r in rows("e2e_ucx")) == [
        (model, kv, "ucx", "local eager") for model, kv in (("char_gpt", "cat"), ("gpt2", "cat"), ("gpt2", "in_place"))]
PYTHON
