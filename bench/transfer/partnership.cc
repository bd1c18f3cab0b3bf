#include "bench/transfer/partnership.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

namespace genie::bench {

using datapath::PostOptions;
using datapath::TransferClass;

namespace {

constexpr uint64_t kStopMs = 5'000;

std::string where_to_listen(const std::string& transport) {
  if (transport != "shm") return "tcp://127.0.0.1:0";
  const auto folder = std::filesystem::temp_directory_path();
  return "unix:" + (folder / ("genie-bench-" + std::to_string(::getpid()) + ".sock")).string();
}

}  // namespace

// While it lives the partner serves one-sided operations; then it sleeps, so that what is measured next has its core.
class Partnership::Serving {
 public:
  Serving(End& end, bool sleeps) : end_(end) {
    end_.ask({.task = sleeps ? Task::kServeAsleep : Task::kServe});
    end_.set_sleeps(sleeps);
  }
  ~Serving() noexcept(false) {
    end_.set_sleeps(false);
    if (!end_.gone()) end_.ask({.task = Task::kIdle});
  }

 private:
  End& end_;
};

Partnership::Partnership(const std::string& transport) : end_(transport) {
  end_.listen(where_to_listen(transport));
  start(transport, end_.transport().address());
  try {
    end_.until([this] {
      int status = 0;
      if (::waitpid(partner_, &status, WNOHANG) == partner_) {
        partner_ = -1;
        throw std::runtime_error("the partner process ended before it was connected");
      }
      return end_.connected();
    });
  } catch (...) {
    stop();
    throw;
  }
}

Partnership::~Partnership() {
  try {
    if (!end_.gone()) end_.tell({.task = Task::kQuit});
  } catch (const std::exception&) {  // it is killed below
  }
  stop();
}

void Partnership::start(const std::string& transport, const std::string& address) {
  std::array<int, 2> sockets{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets.data()) != 0) {
    throw std::system_error(errno, std::generic_category(), "socketpair");
  }
  socket_ = datapath::FileDescriptor(sockets[0]);
  const datapath::FileDescriptor theirs(sockets[1]);
  std::vector<std::string> words = {std::filesystem::read_symlink("/proc/self/exe").string(),
                                    "transfer-partner",
                                    transport,
                                    address,
                                    std::to_string(theirs.get()),
                                    "1"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  partner_ = ::fork();
  if (partner_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (partner_ == 0) {
    ::fcntl(theirs.get(), F_SETFD, 0);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
}

void Partnership::stop() noexcept {
  if (partner_ <= 0) return;
  const Deadline deadline = Deadline::after_ms(kStopMs);
  int status = 0;
  while (::waitpid(partner_, &status, WNOHANG) == 0) {
    end_.transport().wait(1'000'000);
    std::array<datapath::Completion, 4> out;
    end_.transport().poll(out);
    if (deadline.expired()) ::kill(partner_, SIGKILL);
  }
  partner_ = -1;
}

void Partnership::need(size_t bytes) {
  if (bytes <= room_) return;
  end_.need_local(bytes);
  if (room_ == 0) {
    // The partner writes here in answer.
    end_.ask({.task = Task::kImport, .key = end_.share(kEchoBytesMax)});
  } else {
    end_.drop_import();
  }
  end_.ask({.task = Task::kShare, .bytes = 0});
  end_.import(end_.ask({.task = Task::kShare, .bytes = bytes}).key);
  room_ = bytes;
}

void Partnership::post(TransferOp op, size_t bytes, TransferClass how) {
  switch (op) {
    case TransferOp::kWrite: end_.post_write(bytes, how); break;
    case TransferOp::kRead: end_.post_read(bytes, how); break;
    case TransferOp::kSend: end_.send(nullptr, bytes, Kind::kData); break;
  }
}

double Partnership::stream(TransferOp op, size_t bytes, size_t count, size_t depth, bool sleeps) {
  const Serving serving(end_, sleeps);
  const uint64_t begun = now_ns();
  for (size_t i = 0; i < count; ++i) {
    if (end_.in_flight() >= depth) end_.until([&] { return end_.in_flight() < depth; });
    post(op, bytes, TransferClass::kBulk);
  }
  end_.until([&] { return end_.in_flight() == 0; });
  if (op == TransferOp::kSend) end_.ask({.task = Task::kCountSends, .count = count});
  return static_cast<double>(now_ns() - begun);
}

void Partnership::latency(TransferOp op, size_t bytes, size_t count, Samples& samples) {
  const Serving serving(end_, false);
  if (op != TransferOp::kRead) {
    end_.ask({.task = op == TransferOp::kSend ? Task::kEchoSends : Task::kEchoWrites,
              .bytes = bytes,
              .count = count,
              .base = stamp_});
  }
  end_.forget_received();
  for (size_t i = 1; i <= count; ++i) {
    if (op == TransferOp::kWrite) end_.set_stamp(bytes, stamp_ + i);
    const uint64_t begun = now_ns();
    post(op, bytes, TransferClass::kLatency);
    switch (op) {
      case TransferOp::kWrite: end_.until([&] { return end_.stamp(bytes) == stamp_ + i; }); break;
      case TransferOp::kRead: end_.until([&] { return end_.in_flight() == 0; }); break;
      case TransferOp::kSend: end_.until([&] { return end_.received() >= i; }); break;
    }
    const double both_ways = static_cast<double>(now_ns() - begun) / 1e3;
    samples.add(op == TransferOp::kRead ? both_ways : both_ways / 2);
    // The next stamp goes where this one was sent from.
    end_.until([&] { return end_.in_flight() == 0; });
  }
  stamp_ += count;
}

void Partnership::latency_beside(size_t bytes, size_t count, size_t bulk_bytes, size_t bulk_depth, Samples& samples) {
  const Serving serving(end_, false);
  size_t marked_in_flight = 0;
  const auto fill = [&] {
    while (end_.in_flight() - marked_in_flight < bulk_depth) end_.post_write(bulk_bytes, TransferClass::kBulk);
  };
  for (size_t i = 0; i < count; ++i) {
    fill();
    const uint64_t wanted = end_.marked() + 1;
    const uint64_t begun = now_ns();
    end_.post_marked(bytes);
    marked_in_flight = 1;
    end_.until([&] { return end_.marked() == wanted; });
    samples.add(static_cast<double>(now_ns() - begun) / 1e3);
    marked_in_flight = 0;
  }
  end_.until([&] { return end_.in_flight() == 0; });
}

double Partnership::cpu_per_byte(TransferOp op, size_t bytes, size_t count, size_t depth) {
  const uint64_t before = process_cpu_ns() + end_.ask({.task = Task::kCpu}).value;
  stream(op, bytes, count, depth, true);
  const uint64_t after = process_cpu_ns() + end_.ask({.task = Task::kCpu}).value;
  return static_cast<double>(after - before) / static_cast<double>(bytes * count);
}

double Partnership::post_batch(size_t bytes, size_t count) {
  const Serving serving(end_, false);
  const PostOptions options{.transfer_class = TransferClass::kBulk, .deadline = Deadline::after_ms(60'000)};
  const uint64_t begun = now_ns();
  size_t posted = 0;
  while (posted < count && end_.try_write(bytes, posted * bytes, options)) ++posted;
  const uint64_t ended = now_ns();
  end_.until([&] { return end_.in_flight() == 0; });
  if (posted < count) throw std::runtime_error("only " + std::to_string(posted) + " descriptors can be posted at once");
  return static_cast<double>(ended - begun) / 1e3;
}

double Partnership::socket_stream(size_t bytes, size_t count) {
  const uint64_t begun = now_ns();
  end_.tell({.task = Task::kSocketCount, .bytes = bytes, .count = count});
  for (size_t i = 0; i < count; ++i) {
    if (::send(socket_.get(), end_.local(), bytes, 0) < 0) throw std::runtime_error("send");
  }
  if (::recv(socket_.get(), end_.local(), 1, 0) < 0) throw std::runtime_error("recv");
  return static_cast<double>(now_ns() - begun);
}

void Partnership::socket_latency(size_t bytes, size_t count, Samples& samples) {
  end_.tell({.task = Task::kSocketEcho, .bytes = bytes, .count = count + 1});
  // The first one wakes the partner.
  for (size_t i = 0; i <= count; ++i) {
    const uint64_t begun = now_ns();
    if (::send(socket_.get(), end_.local(), bytes, 0) < 0 || ::recv(socket_.get(), end_.local(), bytes, 0) < 0) {
      throw std::runtime_error("the socket pair broke");
    }
    if (i > 0) samples.add(static_cast<double>(now_ns() - begun) / 2e3);
  }
}

}  // namespace genie::bench
