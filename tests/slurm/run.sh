#!/usr/bin/env bash
# A real Slurm on this machine, with two node daemons, in which the pool's tests start their workers by
# srun. As root on Debian, for tests only: it installs slurm-wlm, and starts and ends daemons of its own
# under a temporary folder. Usage: tests/slurm/run.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
[ "$(id -u)" -eq 0 ] || { echo "error: run this as root, in a container" >&2; exit 1; }
for package in slurm-wlm munge; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" >/dev/null
done

dir=$(mktemp -d)
chmod 755 "$dir"
daemons=()
stop() {
  # A killed srun leaves its job, until its worker finds that nobody asks.
  scancel --user=root 2>/dev/null || true
  for _ in $(seq 20); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.5; done
  for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$dir"
}
trap stop EXIT

install -d -o munge -m 755 "$dir/munge"
dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
chown munge "$dir/munge/key" && chmod 400 "$dir/munge/key"
runuser -u munge -- munged --foreground --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
  --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" >/dev/null 2>&1 &
daemons+=($!)

host=$(hostname -s)
cores=$(nproc)
cat > "$dir/slurm.conf" <<END
ClusterName=moetune
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=$cores
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=$cores
PartitionName=test Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
END
mkdir -p "$dir/state" "$dir/spool-node1" "$dir/spool-node2"
export SLURM_CONF=$dir/slurm.conf
slurmctld -D >/dev/null 2>&1 &
daemons+=($!)
for node in node1 node2; do
  slurmd -D -N "$node" >/dev/null 2>&1 &
  daemons+=($!)
done
for _ in $(seq 60); do
  [ "$(sinfo -h -t idle -o %D 2>/dev/null || true)" = 2 ] && break
  sleep 1
done
sinfo
[ "$(sinfo -h -t idle -o %D)" = 2 ] || { tail -n 20 "$dir"/*.log; echo "error: Slurm did not start" >&2; exit 1; }

MOETUNE_LAUNCHER='srun --quiet --nodes=1 --ntasks=1 --exclusive' \
  "$build/test_pool" -tc="launcher: *" --duration=true
squeue
