#include "genie/status.h"

namespace genie {

struct Status::Record {
  std::atomic<uint32_t> references{1};
  Errc code;
  std::string text;
};

const char* errc_name(Errc code) noexcept {
  switch (code) {
    case Errc::kOk: return "ok";
    case Errc::kAgain: return "try again";
    case Errc::kInProgress: return "in progress";
    case Errc::kInvalidArgument: return "invalid argument";
    case Errc::kOutOfRange: return "out of range";
    case Errc::kNotFound: return "not found";
    case Errc::kAlreadyExists: return "already exists";
    case Errc::kUnsupported: return "unsupported";
    case Errc::kTimedOut: return "timed out";
    case Errc::kCancelled: return "cancelled";
    case Errc::kQuotaExceeded: return "quota exceeded";
    case Errc::kOutOfMemory: return "out of memory";
    case Errc::kStale: return "stale handle";
    case Errc::kPermission: return "permission denied";
    case Errc::kOpFailed: return "operation failed";
    case Errc::kPoisoned: return "poisoned storage";
    case Errc::kBusy: return "busy";
    case Errc::kConfig: return "configuration error";
    case Errc::kDisconnected: return "disconnected";
    case Errc::kUnreachable: return "unreachable";
    case Errc::kProtocol: return "malformed message";
    case Errc::kVersionMismatch: return "version mismatch";
    case Errc::kUnauthenticated: return "unauthenticated";
    case Errc::kDeviceLost: return "device lost";
    case Errc::kIo: return "input/output error";
    case Errc::kInternal: return "internal error";
  }
  return "unknown error";
}

Status::Status(Errc code, std::string text) {
  if (code == Errc::kOk) return;
  rep_ = reinterpret_cast<uintptr_t>(new Record{.code = code, .text = std::move(text)});
}

Errc Status::code() const noexcept {
  if (rep_ == 0) return Errc::kOk;
  if (!has_record()) return static_cast<Errc>(rep_ >> 1);
  return reinterpret_cast<const Record*>(rep_)->code;
}

std::string_view Status::text() const noexcept {
  return has_record() ? std::string_view(reinterpret_cast<const Record*>(rep_)->text) : std::string_view();
}

std::string Status::to_string() const {
  std::string out = errc_name(code());
  if (!text().empty()) out.append(": ").append(text());
  return out;
}

void Status::retain() noexcept {
  if (has_record()) reinterpret_cast<Record*>(rep_)->references.fetch_add(1, std::memory_order_relaxed);
}

void Status::release() noexcept {
  if (!has_record()) return;
  auto* record = reinterpret_cast<Record*>(rep_);
  if (record->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete record;
}

Error::Error(Status status) : std::runtime_error("genie: " + status.to_string()), status_(std::move(status)) {}

}  // namespace genie
