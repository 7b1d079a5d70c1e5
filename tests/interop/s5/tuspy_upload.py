"""tuspy as a process of its own, as it leaves its files open: UPLOAD-OR-SERVER DATA CHUNK [HASH [STOP_AT]].

Prints JSON: the upload's url and the offset at which it began; or the status at which it failed.
"""

import json
import sys

from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.uploader.uploader import Uploader

url, data, chunk, *more = sys.argv[1:]
try:
    if more:
        made = TusClient(url).uploader(data, chunk_size=int(chunk), metadata={"hash": more[0]})
    else:
        made = Uploader(data, url=url, chunk_size=int(chunk))
    began = made.offset
    made.upload(stop_at=int(more[1]) if more[1:] else None)
    answer: dict[str, object] = {"url": made.url, "began": began}
except (TusUploadFailed, TusCommunicationError) as error:
    answer = {"status": error.status_code}
sys.stdout.write(json.dumps(answer))
