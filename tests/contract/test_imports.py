"""Importing changes nothing outside the package."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import importlib, json, logging, os, pkgutil, random, signal, sys, threading, warnings
import numpy, platformdirs, rich.style, safetensors, torch, transformers, typer  # what they do is theirs

OPTIONAL = {"peft", "torchvision", "faiss", "sentence_transformers", "matplotlib", "gguf", "PIL", "datasets"}
asked = []


class Watch:
    "Notes which module of the package asks for an optional package."

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame.f_globals.get("__name__", "").startswith("editable"):
                asked.append(f"{frame.f_globals['__name__']} imports {name}")
        return None


def state():
    handlers = [repr(h) for h in logging.root.handlers]
    return {
        "environment": dict(os.environ),
        "log handlers": handlers,
        "log level": logging.root.level,
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": repr(numpy.random.get_state()),
        "random state": repr(random.getstate()),
        "default dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads of torch": torch.get_num_threads(),
        "threads": threading.active_count(),
        "warning filters": repr(warnings.filters),
        "signal handlers": [repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "working directory": os.getcwd(),
        "search path": sys.path,
        "exception hook": repr(sys.excepthook),
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
    }


before = state()
sys.meta_path.insert(0, Watch)
names = ["editable", "editable.adapters", "editable.memory", "editable.benchmarks"]  # folders side by side
for room in tuple(names):
    found = pkgutil.walk_packages(importlib.import_module(room).__path__, room + ".")
    names += [module.name for module in found if not module.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
after = state()
brought = sorted({"peft", "faiss", "sentence_transformers", "datasets", "matplotlib"} & set(sys.modules))
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({"changed": changed, "asked": asked, "brought": brought, "names": names}))
"""


def test_importing_every_module_changes_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout.splitlines()[-1])
    assert {"editable.edit", "editable.adapters.grace", "editable.memory.errors"} <= set(report.pop("names"))
    assert report == {"changed": [], "asked": [], "brought": []}
    assert len(run.stdout.splitlines()) == 1, "something printed"
