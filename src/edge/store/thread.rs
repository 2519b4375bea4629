//! Thread `store`: the only writer of an agent's file, with group commit.

use crossbeam_channel::{Receiver, Sender};

use super::schema::SCHEMAS;
use super::{Store, cause_of};
use crate::core::Cause;
use crate::core::agent::effect::StoreCommand;
use crate::core::agent::event::{Event, StoreEvent};
use crate::core::agent::store::{Choice, StoreOp};
use crate::core::commit::Commit;
use crate::core::store::StoreKind;
use crate::edge::aside::{put_back, suspect};
use crate::edge::database::{drop_copies, error_of};
use crate::os;

/// Most commits in one transaction.
const GROUP_MAX: usize = 256;

/// The thread; ends when nobody gives orders any more.
pub fn run(store: Store, orders: Receiver<StoreCommand>, lane: Sender<Event>) {
    let mut writer = Writer { store, lane, stalled: Vec::new(), broken: false };
    match writer.store.snapshot() {
        // Nobody hears it: then nobody gives orders either.
        Ok(snapshot) => drop(writer.send(StoreEvent::Restored(Box::new(snapshot)))),
        Err(error) => {
            let broken = StoreEvent::Broken(error_of("the runner's store", &error));
            let _ = writer.send(broken);
            return orders.iter().for_each(drop);
        }
    };
    match writer.serve(&orders) {
        End::Stopped => writer.close(),
        End::Unheard => {}
    }
}

/// Why the thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody gives orders any more, or hears whether they are durable.
    Stopped,
    /// Nobody hears what was read.
    Unheard,
}

/// What came with one group of orders, besides commits.
#[derive(Default)]
struct Group {
    retry: bool,
    fetches: Vec<Fetch>,
}

/// A part of the store that memory has no copy of.
enum Fetch {
    Inbox(Choice),
    Outbox,
}

struct Writer {
    store: Store,
    lane: Sender<Event>,
    /// Commits that are not durable yet.
    stalled: Vec<Commit<StoreOp>>,
    /// The file is gone or another one: it is left as it is.
    broken: bool,
}

impl Writer {
    /// False: nobody hears it.
    fn send(&self, event: StoreEvent) -> bool {
        if tells_damage(&event) {
            suspect(self.store.place.path());
        }
        self.lane.send(Event::Store(event)).is_ok()
    }

    fn serve(&mut self, orders: &Receiver<StoreCommand>) -> End {
        while let Ok(first) = orders.recv() {
            let was_stalled = !self.stalled.is_empty();
            let Group { retry, fetches } = self.take_group(first, orders);
            if !self.stalled.is_empty() && (retry || !was_stalled) && !self.commit() {
                return End::Stopped;
            }
            for fetch in fetches {
                let event = self.fetch(fetch);
                if !self.send(event) {
                    return End::Unheard;
                }
            }
        }
        End::Stopped
    }

    /// Everything that waits, up to a limit: its commits become one transaction.
    fn take_group(&mut self, first: StoreCommand, orders: &Receiver<StoreCommand>) -> Group {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(order) = next.take() {
            match order {
                StoreCommand::Commit(commit) => self.stalled.push(commit),
                StoreCommand::Retry => group.retry = true,
                StoreCommand::FetchInbox(choice) => group.fetches.push(Fetch::Inbox(choice)),
                StoreCommand::FetchOutbox => group.fetches.push(Fetch::Outbox),
            }
            if self.stalled.len() < GROUP_MAX {
                next = orders.try_recv().ok();
            }
        }
        group
    }

    /// Makes durable what waits; what cannot be written now goes on waiting. False: nobody hears
    /// of it.
    fn commit(&mut self) -> bool {
        let upto = self.stalled.last().map_or(0, |commit| commit.number);
        os::crash_point("before-commit");
        let dropped = match self.store.commit(&self.stalled) {
            Ok(dropped) => dropped,
            Err(error) => return self.send(StoreEvent::Stalled(cause_of(error))),
        };
        os::crash_point("after-commit");
        self.stalled.clear();
        // What went into a file that nobody will find again is not called durable.
        let Some(moved) = self.store.place.look() else {
            return self.send(StoreEvent::Committed { upto, dropped });
        };
        self.broken = true;
        self.send(StoreEvent::Broken(put_back(&self.store.db, self.store.place.path(), moved)))
    }

    fn fetch(&self, fetch: Fetch) -> StoreEvent {
        let choice = match fetch {
            Fetch::Inbox(choice) => choice,
            Fetch::Outbox => {
                return StoreEvent::OutboxRows { rows: self.store.outbox().map_err(cause_of) };
            }
        };
        match self.store.inbox(&choice) {
            Ok((rows, more)) => StoreEvent::InboxRows { rows, more },
            Err(error) => match error_of("the runner's store", &error) {
                error if error.kind.retry().is_none() => StoreEvent::Broken(error),
                _ => StoreEvent::InboxRows { rows: Vec::new(), more: true },
            },
        }
    }

    /// What was accepted is on disk. A file without a log opens faster.
    fn close(&self) {
        let emptied = || self.store.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);");
        if !self.broken && emptied().is_ok() {
            drop_copies(self.store.place.path(), SCHEMAS.len());
        }
    }
}

/// The next start has to look at the file.
fn tells_damage(event: &StoreEvent) -> bool {
    let cause = match event {
        StoreEvent::Broken(error) => return error.kind == StoreKind::Corrupt,
        StoreEvent::Stalled(cause) | StoreEvent::OutboxRows { rows: Err(cause) } => cause,
        _ => return false,
    };
    matches!(cause, Cause::Store(error) if error.kind == StoreKind::Corrupt)
}
