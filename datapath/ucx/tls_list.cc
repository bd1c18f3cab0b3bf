#include "datapath/ucx/tls_list.h"

#include <algorithm>
#include <array>

namespace genie::datapath::ucx {
namespace {

template <typename Is>
bool any_name(std::string_view list, const Is& is) {
  for (size_t begin = 0, end; begin <= list.size(); begin = end + 1) {
    end = std::min(list.find(',', begin), list.size());
    if (is(list.substr(begin, end - begin))) return true;
  }
  return false;
}

}  // namespace

bool may_use_tcp(std::string_view list) {
  if (list.starts_with('^')) return list.find("tcp") == std::string_view::npos;
  return list.find("tcp") != std::string_view::npos || list.find("all") != std::string_view::npos;
}

bool may_use_network(std::string_view list) {
  constexpr std::array<std::string_view, 9> kNames = {"all", "tcp", "ib", "rc", "ud", "dc", "ugni", "gga", "srd"};
  return list.starts_with('^') || any_name(list, [&](std::string_view name) {
           return std::ranges::any_of(kNames, [&](std::string_view known) { return name.starts_with(known); });
         });
}

bool is_shared_memory(std::string_view list) {
  constexpr std::array<std::string_view, 7> kNames = {"posix", "sysv", "sm", "shm", "cma", "self", "loopback"};
  return !any_name(list, [&](std::string_view name) { return std::ranges::find(kNames, name) == kNames.end(); });
}

}  // namespace genie::datapath::ucx
