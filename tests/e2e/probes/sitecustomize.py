"""On the shared server's PYTHONPATH: every scheduler writes down what its requests carry when they arrive."""

import importlib.abc
import importlib.util
import json
import os
import sys

MODULE = "sglang.srt.managers.scheduler"
OUTPUT = os.environ["REQUEST_PROBE_FILE"]


def note_requests(scheduler_module):
    original = scheduler_module.Scheduler.handle_generate_request

    def handle_generate_request(self, request):
        params = request.sampling_params.custom_params or {}
        with open(OUTPUT, "a") as output:
            output.write(json.dumps({"session_id": request.session_id, "hints": params.get("agentinfer")}) + "\n")
        return original(self, request)

    scheduler_module.Scheduler.handle_generate_request = handle_generate_request


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        self.spec = importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, self, origin=self.spec.origin)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = self.spec.origin
        self.spec.loader.exec_module(module)
        note_requests(module)


sys.meta_path.insert(0, Finder())
