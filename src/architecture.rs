//! How readiness flows. Documentation only.
//!
//! ```text
//! any thread                          │ the reactor's thread
//!                                     │
//! Registration ── publishes ─► Source │  turn:
//!   register, deregister      intent ─┼─► intake ─► reconcile each source ─► batch of entries
//!                                     │                                          │
//!                                     │        one io_uring_enter: submit, wait ◄┘
//!                                     │                  │
//!   poll_*_ready ◄─ edges, wakers ◄───┼── dispatch ◄─ completions
//!                                     │
//!                 doorbell, scout     │  recover: reconcile whatever has ended
//!                (only if the reactor is parked)
//! ```
//!
//! **Publish, don't lock.** `register` makes a *source* and publishes it with one compare-exchange.
//! The winner gets `Ok(true)`, the losers free theirs and get `Ok(false)`. There is no state
//! "registering" in which anybody could wait; whoever meets a published source that has not been
//! queued yet queues it.
//!
//! **Intent, not commands.** A source says what is wanted: which interest, whether it is to end,
//! whether to close its descriptor. The *intake*, a lock-free list, only says that a source needs a
//! look. The *driver* compares what is wanted with what is armed and asks the kernel for the
//! difference. Registering and deregistering between two turns costs the kernel nothing, ten changes
//! cost one entry, and recovery from whatever the kernel did is the same code as arming.
//!
//! **Who sleeps is woken once, and if need be.** A reactor that is awake is handed a source by the push
//! alone. One that sleeps is rung by the first of any number of pushes. It sleeps on over a few sources
//! which want nothing but to be read: their descriptors go into the *scout*, an epoll instance that the
//! kernel watches for the reactor, and end the sleep themselves when there is something to read.
//!
//! **The driver owns the slots.** They belong to the reactor's thread and need no synchronization. A
//! completion names its slot and a generation; a slot is freed at its last completion, so no
//! completion can meet a stranger. A registration reaches its source by a pointer of its own, and
//! asking for readiness never touches the driver.
//!
//! **Edges are words.** Dispatch sets bits in the source's *edge word* and, in the same atomic step,
//! claims the wakers that wait for them. A poll takes the bits in one step, or leaves its waker in
//! two. No lock, no allocation, from the completion to the task. (More than one task a direction wait in
//! a list, which has a lock.)
//!
//! **The ring is disposable.** Arming a poll reports what is ready now. So dropping a ring and arming
//! every slot on a new one loses no edge, and that one path serves a reactor that moved to another
//! thread, a child after a fork, and a ring beyond repair.
//!
//! **What is proved, and how.** What threads share on the way of an event is written against one shim that
//! is std or loom. The models in `loom-tests/` run the code that ships, over a fake kernel.
//!
//! The seam to the kernel is one trait: arm, cancel, close, wait, and what a move, a fork and another
//! event loop ask for. Behind it are io_uring, epoll, and the fake. What io_uring polls really do, and what each backend does about it, is written in
//! those modules.
