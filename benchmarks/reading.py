"""How long a file of ratings takes to read, and the most memory for it: as text, and from the cache that this leaves.

python benchmarks/planted.py 25m.csv --users 160000 --movies 40000 --ratings 27777778
python benchmarks/reading.py 25m.csv
"""

import subprocess
import sys

READ = """
import resource, sys, time
from pathlib import Path
from pmfcli.data.cache import read
from pmfcli.data.fields import Columns
began = time.perf_counter()
(ratings, _, _), left = read(Path(sys.argv[1]), Columns(), False)
seconds = time.perf_counter() - began
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
way = "from the cache" if left is None else "as text, and a cache written"
print(f"{ratings.n:,} ratings {way}: {seconds:.1f} s, {most / 1e6:,.0f} MB, {most / ratings.n:.0f} bytes a rating")
"""


def main() -> None:
    subprocess.run([sys.executable, "-m", "pmfcli", "cache", "--clear"], check=True, capture_output=True)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", READ, sys.argv[1]], check=True)


if __name__ == "__main__":
    main()
