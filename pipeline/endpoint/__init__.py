"""The local endpoint: the Hugging Face Inference API with local models, misbehaving on demand.

`models` holds the embedded models, `transformers_model` those saved in a directory, `protocol`
the shapes of requests and answers, `faults` what goes wrong in a rehearsal, `server` the HTTP
application, `process` the endpoint as a process of its own.
"""
