//! Calls that change tasks.

use serde_json::json;

use super::super::Hub;
use super::super::event::After;
use super::{Answer, Asked, Routed, number, object};
use crate::core::ids::TaskId;

impl Hub {
    pub(super) fn make_task_over_http(&mut self, asked: &Asked) -> Routed {
        let (task, sent) = self.make_task(asked.actor, &object(asked.request)?)?;
        self.commits.defer(After::Route { sent });
        Ok(Answer::Durable(201, json!(task)))
    }

    pub(super) fn patch_task_over_http(&mut self, asked: &Asked) -> Routed {
        let id = TaskId(number(asked.first)?);
        self.patch_task(asked.actor, id, &object(asked.request)?)?;
        Ok(Answer::Durable(200, json!({"ok": true, "id": id})))
    }
}
