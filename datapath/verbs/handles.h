// Owners of what libibverbs makes. Internal to this folder.
//
// Thread-safety: values. Ownership: each destroys what it holds; a domain must outlive what was made in it.
#pragma once

#include <infiniband/verbs.h>

#include <memory>

namespace genie::datapath::verbs {

// A failure to destroy leaks and nothing more: there is nobody to tell, and nothing to do.
struct Destroy {
  void operator()(ibv_context* context) const noexcept { static_cast<void>(ibv_close_device(context)); }
  void operator()(ibv_pd* domain) const noexcept { static_cast<void>(ibv_dealloc_pd(domain)); }
  void operator()(ibv_comp_channel* channel) const noexcept { static_cast<void>(ibv_destroy_comp_channel(channel)); }
  void operator()(ibv_cq* queue) const noexcept { static_cast<void>(ibv_destroy_cq(queue)); }
  void operator()(ibv_qp* pair) const noexcept { static_cast<void>(ibv_destroy_qp(pair)); }
  void operator()(ibv_mr* region) const noexcept { static_cast<void>(ibv_dereg_mr(region)); }
};

template <typename T>
using Handle = std::unique_ptr<T, Destroy>;

}  // namespace genie::datapath::verbs
