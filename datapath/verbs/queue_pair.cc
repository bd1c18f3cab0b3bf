#include "datapath/verbs/queue_pair.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

namespace genie::datapath::verbs {
namespace {

// Small messages travel within the work request; devices that take less say so by refusing, and get half of it.
constexpr uint32_t kInlineWanted = 220;
constexpr uint32_t kPacketNumbers = 0xffffff;
// 0.64 ms: a peer without a receive posted is late by a moment at most.
constexpr uint8_t kReceiverNotReadyTimer = 12;
// Below 7, which means for ever.
constexpr uint8_t kReceiverNotReadyRetries = 6;

Status refused(const char* what, const Device& device, int error) {
  std::string text = std::string(what) + " on " + device.name + ": " + std::strerror(error);
  if (error == ENOMEM) text += "; the device or the limit of locked memory ('ulimit -l') is used up";
  return Status(error == ENETUNREACH || error == EHOSTUNREACH || error == ETIMEDOUT ? Errc::kUnreachable : Errc::kIo,
                std::move(text));
}

}  // namespace

Status QueuePair::create(const Domain& domain) {
  ibv_qp_init_attr wanted{};
  wanted.send_cq = domain.device->completions.get();
  wanted.recv_cq = domain.device->completions.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = kSends;
  wanted.cap.max_recv_wr = kReceives;
  wanted.cap.max_send_sge = 1;
  wanted.cap.max_recv_sge = 1;
  for (uint32_t bytes = kInlineWanted;; bytes /= 2) {
    ibv_qp_init_attr attributes = wanted;
    attributes.cap.max_inline_data = bytes;
    pair.reset(ibv_create_qp(domain.pd.get(), &attributes));
    inline_max = attributes.cap.max_inline_data;
    if (pair != nullptr) break;
    if (errno != EINVAL || bytes == 0) return refused("cannot make a queue pair", *domain.device, errno);
  }
  first_packet = std::random_device{}() & kPacketNumbers;
  return {};
}

Status QueuePair::initialize(const Device& device) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.port_num = device.port;
  attributes.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
  const int error =
      ibv_modify_qp(pair.get(), &attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (error != 0) return refused("cannot initialize a queue pair", device, error);
  return post_receives(kReceives);
}

Status QueuePair::connect(const Device& device, const PairAddress& peer, const PathOptions& path,
                          const VerbsOptions& options) {
  ibv_qp_attr receive{};
  receive.qp_state = IBV_QPS_RTR;
  receive.path_mtu = path.mtu;
  receive.dest_qp_num = peer.number;
  receive.rq_psn = peer.first_packet;
  receive.max_dest_rd_atomic = path.reads_in;
  receive.min_rnr_timer = kReceiverNotReadyTimer;
  receive.ah_attr.port_num = device.port;
  receive.ah_attr.sl = options.service_level;
  receive.ah_attr.dlid = path.peer_lid;
  // Within one InfiniBand subnet the short address does.
  receive.ah_attr.is_global = device.ethernet ? 1 : 0;
  std::copy(path.peer_gid.begin(), path.peer_gid.end(), receive.ah_attr.grh.dgid.raw);
  receive.ah_attr.grh.sgid_index = static_cast<uint8_t>(path.gid_index);
  receive.ah_attr.grh.hop_limit = 64;
  receive.ah_attr.grh.traffic_class = options.traffic_class;
  int error = ibv_modify_qp(pair.get(), &receive,
                            IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
  if (error != 0) return refused("no way to the peer's RDMA port", device, error);

  ibv_qp_attr send{};
  send.qp_state = IBV_QPS_RTS;
  send.timeout = options.retry_timeout;
  send.retry_cnt = options.retry_count;
  send.rnr_retry = kReceiverNotReadyRetries;
  send.sq_psn = first_packet;
  send.max_rd_atomic = path.reads_out;
  error = ibv_modify_qp(
      pair.get(), &send,
      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
  if (error != 0) return refused("cannot start a queue pair", device, error);
  return {};
}

void QueuePair::fail() noexcept {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  // Where even this fails the queue pair is destroyed before long.
  static_cast<void>(ibv_modify_qp(pair.get(), &attributes, IBV_QP_STATE));
}

Status QueuePair::post_receives(uint32_t count) {
  constexpr uint32_t kBatch = 16;
  std::array<ibv_recv_wr, kBatch> requests{};
  while (count > 0) {
    const uint32_t batch = std::min(count, kBatch);
    for (uint32_t i = 0; i < batch; ++i) {
      // The bytes go where the writer says; a receive only tells that they have come.
      requests[i].wr_id = receive_id();
      requests[i].next = i + 1 < batch ? &requests[i + 1] : nullptr;
    }
    ibv_recv_wr* bad = nullptr;
    const int error = ibv_post_recv(pair.get(), requests.data(), &bad);
    if (error != 0) return Status(Errc::kIo, std::string("cannot post receives: ") + std::strerror(error));
    receives_out += batch;
    count -= batch;
  }
  return {};
}

}  // namespace genie::datapath::verbs
