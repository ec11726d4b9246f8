"""Make tasks of the images in an S3 or MinIO bucket, by Label Studio's own storage.

    export LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=your-token
    export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
    python examples/s3_storage.py PROJECT BUCKET --endpoint http://minio.internal:9000 --prefix pictures

Label Studio keeps the bucket's credentials; the backend never sees them. With --proxy the images come through Label
Studio. Otherwise browser and backend fetch them from the bucket by pre-signed URLs; a bucket with a private
address then has to be named to the backend: NEAT_IMAGE_HOSTS=minio.internal.
"""

import argparse
import os

import httpx


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("project", type=int)
    parser.add_argument("bucket")
    parser.add_argument("--endpoint", help="of MinIO or another S3; default: Amazon's")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--proxy", action="store_true")
    options = parser.parse_args()
    with httpx.Client(
        base_url=os.environ["LABEL_STUDIO_URL"],
        headers={"Authorization": f"Token {os.environ['LABEL_STUDIO_API_KEY']}"},
        timeout=600,
    ) as label_studio:
        storage = {
            "project": options.project,
            "title": options.bucket,
            "bucket": options.bucket,
            "prefix": options.prefix,
            "regex_filter": r".*\.(jpe?g|png|webp|bmp|tiff?|gif)",
            "s3_endpoint": options.endpoint,
            "region_name": options.region,
            "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
            "use_blob_urls": True,  # a task for each object
            "presign": not options.proxy,
        }
        made = label_studio.post("/api/storages/s3/", json=storage).raise_for_status().json()
        synced = label_studio.post(f"/api/storages/s3/{made['id']}/sync").raise_for_status().json()
        print(f"{synced['last_sync_count']} tasks of s3://{options.bucket}/{options.prefix}")


if __name__ == "__main__":
    main()
