#!/bin/sh
# An S3 server on port 8333 with the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the bucket "fedddpm".
set -eu
exec /opt/venv/bin/weed server -dir=/store -ip=127.0.0.1 -ip.bind=0.0.0.0 -master.telemetry=false -s3 -s3.port=8333 \
  -volume.preStopSeconds=0 -volume.max=20 -master.volumeSizeLimitMB=100
