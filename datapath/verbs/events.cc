// Sleeping, and what devices tell unasked.
#include <sys/epoll.h>

#include "datapath/base/log.h"
#include "datapath/verbs/fabric_impl.h"

namespace genie::datapath::verbs {
namespace {

// Acknowledging takes a lock: not at each event.
constexpr unsigned kEventsPerAcknowledgement = 64;

}  // namespace

bool VerbsFabric::arm() {
  if (!dirty_.empty() || !ending_.empty() || !stashed_.empty()) return false;
  armed_ = true;
  bool idle = true;
  for (const auto& device : devices_) {
    ibv_req_notify_cq(device->completions.get(), 0);
    // What came before it was armed makes no event.
    ibv_wc completion;
    if (ibv_poll_cq(device->completions.get(), 1, &completion) <= 0) continue;
    stashed_.push_back(completion);
    idle = false;
  }
  return idle;
}

void VerbsFabric::drain_events() {
  armed_ = false;
  for (const auto& device : devices_) {
    ibv_cq* queue = nullptr;
    void* context = nullptr;
    while (ibv_get_cq_event(device->channel.get(), &queue, &context) == 0) ++device->unacknowledged_events;
    if (device->unacknowledged_events >= kEventsPerAcknowledgement) {
      ibv_ack_cq_events(device->completions.get(), device->unacknowledged_events);
      device->unacknowledged_events = 0;
    }
  }
  handle_async_events();
}

void VerbsFabric::handle_async_events() {
  for (const auto& device : devices_) {
    ibv_async_event event{};
    while (ibv_get_async_event(device->context.get(), &event) == 0) {
      const ibv_event_type type = event.event_type;
      const bool this_port = event.element.port_num == device->port;
      ibv_ack_async_event(&event);
      switch (type) {
        case IBV_EVENT_DEVICE_FATAL: device_failed(*device, "the device failed"); break;
        case IBV_EVENT_CQ_ERR: device_failed(*device, "its completion queue overflowed"); break;
        case IBV_EVENT_PORT_ERR:
          if (this_port) device_failed(*device, "the port went down");
          break;
        case IBV_EVENT_PORT_ACTIVE:
          if (this_port) port_returned(*device);
          break;
        case IBV_EVENT_GID_CHANGE:
          if (this_port && !device->read_addresses(options_.gid_index).ok()) {
            device_failed(*device, "it has lost its address");
          } else if (this_port && !device->up) {
            port_returned(*device);
          }
          break;
        // A queue pair that fails says so by its completions as well.
        default: GENIE_LOG_DEBUG("verbs: {}: {}", device->name, ibv_event_type_str(type)); break;
      }
    }
  }
}

void VerbsFabric::port_returned(Device& device) {
  ibv_port_attr state{};
  if (device.up || ibv_query_port(device.context.get(), device.port, &state) != 0) return;
  if (state.state != IBV_PORT_ACTIVE || !device.read_addresses(options_.gid_index).ok()) return;
  device.up = true;
  GENIE_LOG_WARN("verbs: {} port {} is up again; new connections use it", device.name, device.port);
}

void VerbsFabric::device_failed(Device& device, const char* why) {
  if (!device.up) return;
  device.up = false;
  GENIE_LOG_WARN("verbs: {} port {}: {}", device.name, device.port, why);
  for (size_t i = 0; i < links_.size(); ++i) {
    for (uint32_t rail = 0; rail < links_[i]->rails.size(); ++rail) {
      if (links_[i]->rails[rail].device == &device) fail_rail(*links_[i], rail, why);
    }
  }
}

}  // namespace genie::datapath::verbs
