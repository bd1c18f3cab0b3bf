# What a guest runs, before the command: its network and its RDMA devices. run.sh puts `guest`, its number, above this text
# and the command below it.
# The programs are slow here: tests wait longer.
export GENIE_TEST_PATIENCE=10
export TERM=dumb GTEST_COLOR=no PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home LC_ALL=C.UTF-8
stty -onlcr </dev/console
ip link set lo up
# For the arenas of the programs.
sysctl -q vm.nr_hugepages=64
# Room for an InfiniBand MTU of 4096 and RoCE's headers.
for rail in 0 1; do
  ip link set eth$rail mtu 4200 up
  ip address add "10.77.$rail.$guest/24" dev eth$rail
  rdma link add rxe$rail type rxe netdev eth$rail || echo "guest: no Soft-RoCE on eth$rail"
done
read -r uptime _ </proc/uptime
echo "guest $guest: ready after $uptime s"
