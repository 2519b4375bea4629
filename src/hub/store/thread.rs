//! Thread `hub-store`: the only writer of the hub's file, with group commit.

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::schema::SCHEMAS;
use super::{Committed, HubStore, cause_of};
use crate::core::commit::Commit;
use crate::core::hub::event::{Event, HubOp, Query, StoreCommand, StoreEvent};
use crate::core::ids::ReadNumber;
use crate::edge::database::{drop_copies, error_of, sizes};
use crate::hub::mark::{MarkFile, Pending, persist};
use crate::os::crash_point;

/// Most commits in one transaction.
const GROUP_MAX: usize = 256;

// The queue has thousands of places.
const _: () = assert!(size_of::<StoreCommand>() <= 32);

/// The writer's thread. What was not made durable when it ends was promised to nobody.
pub fn run(
    mut store: HubStore,
    mut mark: MarkFile,
    orders: Receiver<StoreCommand>,
    lane: Sender<Event>,
) {
    match store.snapshot() {
        Ok(mut snapshot) => {
            snapshot.mark = mark.found();
            let _ = lane.send(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        }
        Err(error) => {
            let broken = StoreEvent::Broken(error_of("the hub's store", &error));
            let _ = lane.send(Event::Store(broken));
            return orders.iter().for_each(drop);
        }
    };
    let mut writer = Writer {
        store: &mut store,
        mark: &mut mark,
        orders: &orders,
        lane: &lane,
        waiting: Vec::new(),
        pending: Pending::All,
        vacuum: None,
        broken: false,
    };
    if writer.serve() == End::Broken {
        return;
    }
    if store.checkpoint() {
        drop_copies(store.place.path(), SCHEMAS.len());
    }
    if let Ok(newest) = store.highest_ids() {
        mark.end(newest);
    }
}

/// Why the thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody gives orders, or hears what becomes of them.
    Stopped,
    /// The file is not to be touched any more.
    Broken,
}

struct Writer<'a> {
    store: &'a mut HubStore,
    mark: &'a mut MarkFile,
    orders: &'a Receiver<StoreCommand>,
    lane: &'a Sender<Event>,
    /// Commits that are not durable yet.
    waiting: Vec<Commit<HubOp>>,
    pending: Pending,
    /// Size of the file when the vacuum that is under way began.
    vacuum: Option<u64>,
    /// The file is gone or another one: it is left as it is.
    broken: bool,
}

/// What came with one group of orders, besides commits.
#[derive(Default)]
struct Asked {
    retry: bool,
    looks: bool,
    reads: Vec<(ReadNumber, Query)>,
}

impl Writer<'_> {
    fn send(&self, event: StoreEvent) -> Result<(), End> {
        self.lane.send(Event::Store(event)).map_err(|_| End::Stopped)
    }

    fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.turn() {
                return if self.broken { End::Broken } else { end };
            }
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.vacuum_some()?;
        let Some(first) = self.next_order()? else { return Ok(()) };
        let was_stalled = !self.waiting.is_empty();
        let asked = self.take_group(first);
        if asked.looks
            && let Some(error) = self.store.look()
        {
            let _ = self.send(StoreEvent::Broken(error));
            self.orders.iter().for_each(drop);
            return Err(End::Broken);
        }
        for (number, query) in asked.reads {
            let answer = self.store.answer(&query);
            self.send(StoreEvent::Read { number, answer })?;
        }
        if was_stalled && !asked.retry {
            return Ok(());
        }
        self.commit()
    }

    /// Some pages, then whatever waits: nobody waits for the whole of a vacuum.
    fn vacuum_some(&mut self) -> Result<(), End> {
        let Some(before) = self.vacuum else { return Ok(()) };
        let outcome = match self.store.vacuum_step() {
            Ok(true) => return Ok(()),
            Ok(false) => self.store.after_vacuum().map(|after| (before, after)),
            Err(error) => Err(error),
        };
        self.vacuum = None;
        self.send(StoreEvent::Vacuumed(outcome.map_err(|error| cause_of(&error).to_string())))
    }

    /// `None`: there is none now, and a vacuum goes on.
    fn next_order(&self) -> Result<Option<StoreCommand>, End> {
        if self.vacuum.is_none() {
            return self.orders.recv().map(Some).map_err(|_| End::Stopped);
        }
        match self.orders.try_recv() {
            Ok(order) => Ok(Some(order)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(End::Stopped),
        }
    }

    /// Everything that waits, up to a limit: its commits become one transaction.
    fn take_group(&mut self, first: StoreCommand) -> Asked {
        let mut asked = Asked::default();
        let mut next = Some(first);
        while let Some(order) = next.take() {
            match order {
                StoreCommand::Commit(commit) => self.waiting.push(commit),
                StoreCommand::Retry => asked.retry = true,
                StoreCommand::Look => asked.looks = true,
                StoreCommand::Read { number, query } => asked.reads.push((number, *query)),
                StoreCommand::Vacuum => {
                    let size = sizes(&self.store.db).map_or(0, |(bytes, _)| bytes);
                    self.vacuum = self.vacuum.or(Some(size));
                }
            }
            if self.waiting.len() < GROUP_MAX && asked.reads.len() < GROUP_MAX {
                next = self.orders.try_recv().ok();
            }
        }
        asked
    }

    /// Makes durable what waits; what cannot be written now goes on waiting.
    fn commit(&mut self) -> Result<(), End> {
        while !self.waiting.is_empty() {
            crash_point("hub-before-commit");
            let written = persist(self.store, self.mark, &self.waiting, &mut self.pending);
            let (Committed { existing, unattached, unseen, retired }, count) = match written {
                Ok(committed) => committed,
                Err(cause) => return self.send(StoreEvent::Stalled(cause)),
            };
            crash_point("hub-after-commit");
            let upto = self.waiting.drain(..count).next_back().map_or(0, |commit| commit.number);
            // What went into a file that nobody will find again is not called durable.
            if let Some(error) = self.store.look() {
                self.broken = true;
                return self.send(StoreEvent::Broken(error));
            }
            self.send(StoreEvent::Committed { upto, existing, unattached, unseen, retired })?;
        }
        Ok(())
    }
}
