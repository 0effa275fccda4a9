#!/usr/bin/env bash
# A Slurm cluster on this one machine, for tests: two nodes of four CPUs, 8 GB and two numbered GPUs each.
#
#   tests/slurm/cluster.sh up      install what is missing (apt), write /etc/slurm, start the daemons, wait for both nodes
#   tests/slurm/cluster.sh down    stop the daemons, remove their configuration
#   tests/slurm/cluster.sh node n2 down|idle     set a node down, or give it back
#   tests/slurm/cluster.sh slurmd n2 kill|start  kill a node's daemon, or start it
#
# It needs root, and replaces /etc/slurm/slurm.conf unless somebody else wrote it. The GPUs are numbers only: their device
# files are terminals. Exits with 3, and a line that says why, where no cluster can be had.
set -euo pipefail

STATE=${ISP_SLURM_STATE:-/var/tmp/isp-slurm}
MARK="# written by tests/slurm/cluster.sh"
HOST=$(hostname -s)

unavailable() {
    echo "no Slurm here: $1" >&2
    exit 3
}

install_packages() {
    if command -v slurmctld slurmd munged squeue >/dev/null; then return; fi
    command -v apt-get >/dev/null || unavailable "slurmctld, slurmd and munged are not installed, and there is no apt-get"
    local log
    log=$(mktemp)
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
        >"$log" 2>&1 || unavailable "apt-get install slurm-wlm munge failed: $(tail -n 1 "$log")"
    rm -f "$log"
}

write_configuration() {
    if [ -e /etc/slurm/slurm.conf ] && ! grep -qF "$MARK" /etc/slurm/slurm.conf; then
        unavailable "/etc/slurm/slurm.conf is not ours; this machine has a cluster of its own"
    fi
    mkdir -p /etc/slurm
    rm -rf "$STATE"
    mkdir -p "$STATE"/{ctld,n1,n2}
    # The scheduler is told to look often and to notice a lost node soon: tests wait for it.
    cat >/etc/slurm/slurm.conf <<CONF
$MARK
ClusterName=isp
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=cred_expire=10
MpiDefault=none
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/%n
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd-%n.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$STATE/completed.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
ReturnToService=1
SlurmdParameters=config_overrides
SlurmdTimeout=15
KillWait=20
MinJobAge=300
GresTypes=gpu
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17001 CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17002 CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    echo 'NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]' >/etc/slurm/gres.conf
}

is_up() { [ "$(sinfo -h -N -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$')" = 2 ]; }

wait_until_up() {
    for _ in $(seq 60); do
        if is_up; then return; fi
        sleep 0.5
    done
    unavailable "the nodes did not come up within 30 s: $(tail -n 2 "$STATE/slurmctld.log" 2>/dev/null | tr '\n' ' ')"
}

stop_by() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 40); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
}

up() {
    [ "$(id -u)" = 0 ] || unavailable "daemons for several users need root"
    if is_up && grep -qF "$MARK" /etc/slurm/slurm.conf; then return; fi
    install_packages
    down
    write_configuration
    install -d -o munge -g munge -m 755 /run/munge
    # By force: what a killed one left must not stop it.
    pgrep -x munged >/dev/null || runuser -u munge -- munged --force || unavailable "munged does not start"
    slurmctld || unavailable "slurmctld does not start"
    slurmd -N n1 && slurmd -N n2 || unavailable "slurmd does not start"
    wait_until_up
}

down() {
    scancel --quiet --user "$(id -un)" 2>/dev/null || true
    for daemon in slurmd-n1 slurmd-n2 slurmctld; do stop_by "$STATE/$daemon.pid"; done
    # A configuration without a controller makes every start of Snakemake wait 9 s for an answer.
    if grep -qsF "$MARK" /etc/slurm/slurm.conf; then rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf; fi
}

case "${1:-} ${3:-}" in
    "up ") up ;;
    "down ") down ;;
    "node down") scontrol update NodeName="$2" State=DOWN Reason="a test" ;;
    "node idle") scontrol update NodeName="$2" State=RESUME ;;
    "slurmd kill") kill -9 "$(cat "$STATE/slurmd-$2.pid")" ;;
    "slurmd start") slurmd -N "$2" ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
