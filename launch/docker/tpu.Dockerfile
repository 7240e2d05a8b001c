# discojax for TPU VMs and GKE (libtpu comes with JAX). From the root of the clone:
#
#   docker build --file launch/docker/tpu.Dockerfile --tag discojax:tpu .
#   docker run --privileged --network host --volume "$PWD/runs:/discojax/runs" discojax:tpu discover run.name=first
#
# Without arguments it says what there is. SIGTERM (`docker stop --time 60`) saves before it ends.
FROM python:3.12-slim

WORKDIR /discojax
COPY pyproject.toml README.md LICENSE ./
COPY discojax ./discojax
COPY configs ./configs
RUN pip install --no-cache-dir --editable '.[tpu,hub,gcs,s3]'

ENTRYPOINT ["python", "-m", "discojax.launch"]
CMD ["--help"]
