//! Scenarios with the built binary: real processes, sockets and files, judged by the receiver's own
//! record, never by what a runner says.

mod bus_and_polling;
mod chaos;
mod claude;
mod codex;
mod commands;
mod damaged;
mod encrypted;
mod ended;
mod files;
mod inside;
mod manager;
mod orchestrator;
mod outage;
mod posted;
mod prompt;
mod published;
mod quirks;
mod restores;
mod rights;
mod secrets;
mod senders;
mod service;
mod shown;
mod start;
mod stores;
mod stuck;
mod support;
mod terminals;
mod tools;
mod words;
